-- GET /metrics/sites: what each hospital sent and got, from the table `sites`, for Prometheus.
-- HAProxy's own exporter counts by listener and server, not by client certificate.

local FAMILIES = {
   { "requests_total", "http_req_cnt", "Requests of the site that passed the handshake." },
   { "received_bytes_total", "bytes_in_cnt", "HTTP bytes from the site." },
   { "sent_bytes_total", "bytes_out_cnt", "HTTP bytes to the site." },
}

core.register_service("sites", "http", function(applet)
   local rows = core.backends["sites"].stktable:dump()
   local lines = {}
   for _, family in ipairs(FAMILIES) do
      local name, column, help = "fedward_edge_site_" .. family[1], family[2], family[3]
      lines[#lines + 1] = "# HELP " .. name .. " " .. help
      lines[#lines + 1] = "# TYPE " .. name .. " counter"
      for site, row in pairs(rows) do
         -- A site's name is [a-z0-9-]: `certs.names` lets no other into a certificate.
         lines[#lines + 1] = string.format('%s{site="%s"} %d', name, site, row[column])
      end
   end
   local body = table.concat(lines, "\n") .. "\n"
   applet:set_status(200)
   applet:add_header("content-type", "text/plain; version=0.0.4")
   applet:add_header("content-length", tostring(#body))
   applet:start_response()
   applet:send(body)
end)
